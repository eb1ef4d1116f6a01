"""Speed of iomesh compared with the raw file and qemu-storage-daemon: `make bench`. docs/performance.md explains each
figure.
"""
