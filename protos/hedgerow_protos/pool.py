"""A descriptor pool of Hedgerow's own.

Several packages register a protobuf package called `inference` in the default
pool, tritonclient and kserve among them, and whichever is imported second
fails ("duplicate symbol"). Messages in a pool of their own meet nobody: the
bytes on the wire are the same.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
