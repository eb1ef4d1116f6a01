"""The compiled engine. Its parts are built from ext/; iomesh.engine.engine is the one that Python imports."""
