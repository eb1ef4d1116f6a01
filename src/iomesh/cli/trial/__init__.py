"""`iomesh trial`: a throw-away installation on this machine, in one directory."""
