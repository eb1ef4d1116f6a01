"""The command line: `iomesh`. One module per group of commands; each thin over the control API or, for what is at rest, the engine."""
