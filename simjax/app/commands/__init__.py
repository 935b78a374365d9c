"""The commands, one a module, each a function whose arguments are those of the command line."""
