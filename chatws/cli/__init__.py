"""The command `chatws`: what an operator does towards a running server. One module for each subcommand."""
