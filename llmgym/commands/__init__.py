"""The commands of the command line, one module each; they stand above agents, and nothing imports them but `cli`."""
