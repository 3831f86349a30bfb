"""Makes the helpers beside it importable from the tests of figures and tables too."""
