"""`siftune doctor`: what of this machine, cluster and checkout would stop a job, before it waits.

It runs where nothing but Python is installed, and asks what is there: files of the kernel, tools
on the path. What cannot be asked is no finding.
"""
