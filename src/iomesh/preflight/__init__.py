"""`iomesh check node`: whether this machine has what the daemon and the CSI driver need, before they are started.

What a daemon checks at its start is checked by the same code: what is refused there is refused here, in the same words.
Nothing is written, but for a lock file in a state directory that exists. What a daemon that runs has is not checked.
"""
