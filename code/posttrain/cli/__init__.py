"""The command line, the chat window, the models that run in a page."""
