"""The command line: `iomesh`. One module per group of commands; each thin over the control API or, for devices at rest,
the engine."""
