"""Any image source -> an RGB array -> the network's input: the one pixel path."""
