"""ShapeWorld: a small world of captioned pictures in which a claim about pictures can be checked.

`scene` says what is in a picture, `render` draws it, `caption` puts it into words and reads the words back,
`edit` changes a scene by an instruction, `oracle` reads a picture and says what it sees.
"""
