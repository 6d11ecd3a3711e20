"""How fast the operators are beside what people would write instead: `python -m bench core`."""
