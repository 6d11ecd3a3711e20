"""Gates, removal and hand-over for TorchRec models whose tables are sharded over processes.

Nothing here imports TorchRec: its collections are recognised by what they can do.
"""

from lpfs.torchrec.checkpoints import checkpoint, resume
from lpfs.torchrec.gating import ShardedGate, attach
from lpfs.torchrec.handing import restore, save

__all__ = ["ShardedGate", "attach", "checkpoint", "restore", "resume", "save"]
