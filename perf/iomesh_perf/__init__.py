"""How fast iomesh is, beside the raw file and qemu-storage-daemon: `make bench`. docs/performance.md says what each figure means."""
