import sys

from iomesh_perf.main import main

sys.exit(main())
