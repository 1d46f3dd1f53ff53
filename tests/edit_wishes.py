"""Wishes for an edit, with the plan that a person would make of them, by hand.

Both tables were written before the rules. The rules were fitted to TUNED; HELD_OUT was run once, when they were
done, and the rules were not changed after that. One person wrote both tables and the rules.
A row: the wish, the instructions in order, and the kinds of what is left out.
"""

from __future__ import annotations

Row = tuple[str, list[str], list[str]]

TUNED: list[Row] = [
    (
        "make it night and turn the car red, then put it in Paris",
        ["make it night", "turn the car red", "put it in Paris"],
        [],
    ),
    ("Turn the red and blue balls green", ["Turn the red and blue balls green"], []),
    ("make the photo black and white; add a small boat", ["make the photo black and white", "add a small boat"], []),
    (
        "Could you please make the sky pink and the grass blue? Thanks!",
        ["make the sky pink", "make the grass blue"],
        [],
    ),
    ("First remove the people, then make it snow.", ["remove the people", "make it snow"], []),
    ("Make it look like a watercolor painting.", ["Make it look like a watercolor painting"], []),
    ("add five birds and turn the house into a castle", ["turn the house into a castle"], ["counting"]),
    ("move the cup to the left, and make the table wooden", ["make the table wooden"], ["spatial"]),
    (
        'make the sign say "salt and pepper, then go" and paint the door green',
        ['make the sign say "salt and pepper, then go"', "paint the door green"],
        [],
    ),
    (
        "give him salt and pepper hair, add a beard and remove the glasses",
        ["give him salt and pepper hair", "add a beard", "remove the glasses"],
        [],
    ),
    ("make it winter, but before that remove the cars", ["remove the cars", "make it winter"], []),
    (
        "After turning the dog into a wolf, make the moon bigger",
        ["turn the dog into a wolf", "make the moon bigger"],
        [],
    ),
    (
        "turn the cat into a tiger and the sofa into a rock",
        ["turn the cat into a tiger", "turn the sofa into a rock"],
        [],
    ),
    (
        "make the (sky:1.3) stormy and add <lora:rain:0.8> heavy rain",
        ["make the (sky:1.3) stormy", "add <lora:rain:0.8> heavy rain"],
        [],
    ),
    ("swap the cat and the dog. Make the wall yellow.", ["Make the wall yellow"], ["spatial"]),
    (
        "1. make it sunset\n2. add a lighthouse\n3. make the sea calm",
        ["make it sunset", "add a lighthouse", "make the sea calm"],
        [],
    ),
    ("I love this picture! Can you make her dress red and gold?", ["make her dress red and gold"], ["nothing"]),
    ("make her hair blonde and keep the face the same", ["make her hair blonde"], ["keep"]),
    (
        "replace the mountains with skyscrapers, the trees with lamp posts and the river with a highway",
        [
            "replace the mountains with skyscrapers",
            "replace the trees with lamp posts",
            "replace the river with a highway",
        ],
        [],
    ),
    ("Make it foggy. Finally, zoom out.", ["Make it foggy"], ["viewpoint"]),
]

HELD_OUT: list[Row] = [
    (
        "change the season to autumn and add a wooden bench next to the lake",
        ["change the season to autumn", "add a wooden bench next to the lake"],
        [],
    ),
    (
        "would you paint the fence white and the gate dark green, please",
        ["paint the fence white", "paint the gate dark green"],
        [],
    ),
    ("make the old man and the young woman smile", ["make the old man and the young woman smile"], []),
    (
        "turn the day into night, light up the windows and put a full moon in the sky",
        ["turn the day into night", "light up the windows", "put a full moon in the sky"],
        [],
    ),
    ("add a cowboy hat and sunglasses", ["add a cowboy hat and sunglasses"], []),
    ("make three cats out of two, then make the room darker", ["make the room darker"], ["counting"]),
    (
        "Turn it into a pencil sketch before adding a red umbrella",
        ["Turn it into a pencil sketch", "add a red umbrella"],
        [],
    ),
    (
        "please make the car look rusty; give the driver a beard; then make it all look like an old photograph",
        ["make the car look rusty", "give the driver a beard", "make it all look like an old photograph"],
        [],
    ),
    (
        "Make the cake a pizza and the candles asparagus",
        ["Make the cake a pizza", "Make the candles asparagus"],
        [],
    ),
    ("put the dog behind the fence and make the fence blue", ["make the fence blue"], ["spatial"]),
    (
        "I'd like the sky to be purple and the sea to be orange",
        ["make the sky purple", "make the sea orange"],
        [],
    ),
    (
        "make it a rainy day, add puddles and reflections, and turn up the contrast",
        ["make it a rainy day", "add puddles and reflections", "turn up the contrast"],
        [],
    ),
    (
        "make the fish and chips look tastier and swap the plate for a wooden board",
        ["make the fish and chips look tastier", "swap the plate for a wooden board"],
        [],
    ),
    (
        'write "rock and roll, then sleep" on the shirt and remove the logo',
        ['write "rock and roll, then sleep" on the shirt', "remove the logo"],
        [],
    ),
    ("make it (oil painting:1.2) and add a {cat|dog}", ["make it (oil painting:1.2)", "add a {cat|dog}"], []),
    ("Make him older after you remove the hat", ["remove the hat", "Make him older"], []),
    (
        "don't touch the background, just make her coat black and white striped",
        ["make her coat black and white striped"],
        ["keep"],
    ),
    ("show it from above and make it autumn", ["make it autumn"], ["viewpoint"]),
    (
        "erase the power lines\nbrighten the foreground\nmake the clouds dramatic",
        ["erase the power lines", "brighten the foreground", "make the clouds dramatic"],
        [],
    ),
    (
        "What a nice garden! Add roses everywhere, double the number of trees and make it misty",
        ["Add roses everywhere", "make it misty"],
        ["nothing", "counting"],
    ),
]
