"""REMEDI: what a text says of an entity as a direction; its map, its examples, its steering."""
