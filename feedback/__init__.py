"""What a person likes and dislikes."""
