"""iomesh: replicated block volumes for databases on Kubernetes, from user space."""
