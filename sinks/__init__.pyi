from vadpipe.repository import IntoRepository as IntoRepository
from vadpipe.repository import Point as Point
from vadpipe.repository import ReadPoint as ReadPoint
from vadpipe.repository import Repository as Repository
from vadpipe.repository import RepositoryReader as RepositoryReader
from vadpipe.repository import RestorePoint as RestorePoint
from vadpipe.repository import open_repository as open_repository
from vadpipe.repository import verify as verify

from .null import Nowhere as Nowhere
from .null import NullSink as NullSink
from .raw import RawDirectory as RawDirectory
from .raw import RawFile as RawFile
from .raw import RawReceipt as RawReceipt
from .restoring import restore as restore
from .vddk_disk import IntoVddkDisk as IntoVddkDisk
from .vddk_disk import VddkReceipt as VddkReceipt
