"""The control plane: watches the registry, verifies versions, tells servers what to serve."""

import os

# gRPC's C core reads this when it is first used. Its fork handlers only log here:
# the children of this process are other programs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
