"""The CSI driver: volumes for Kubernetes, through the control API of the node daemons. docs/csi.md describes it.

    server        gRPC on a unix socket; identity, controller, groups and node are the services behind it
    cluster       the control API of any node
    volumes       what the controller does with volumes;  snapshots: with snapshots
    staging       the steps from a volume to a mounted file system;  attach: those to a block device
    registration  makes the driver known to the kubelet

It keeps no state of its own but what a node's attached volumes need (attach). Every call can be repeated after a crash
between any two of its steps.
"""
