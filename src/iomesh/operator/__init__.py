"""iomesh in Kubernetes (docs/kubernetes.md): the operator, one for the cluster, and the agent beside each daemon.

Both show what is, as custom resources, and carry out what was asked for there. The daemons hold the truth: no read
or write of a volume waits for anything here.
"""
