"""What is decided over numpy views of the engine's tables. Nothing here asks the engine or waits: arrays in, choices out."""
