"""Does the model go on in a toxic way, and what did it give up for not doing so?"""
