"""The command line: a table in; predictions with bands, a model folder and a report out."""
