"""What a person types. Thin: parse, call, print. What needs a model is a worker module that the command becomes."""
