"""`siftune bundle`: all that a cluster without a network needs, in one tar that proves itself.

Its files lie where they belong below a repository's root, so that the unpacked folder becomes the
checkout. The first of them, SHA256SUMS, is what `sha256sum --check` reads, too.
"""

SUMS = "SHA256SUMS"
CONTENTS = "bundle.json"
REPOSITORY = "repository.bundle"
