"""Which job starts when and where, within the limits of vSphere; and what that gives for a site, simulated.

values      jobs, proxies, events and decisions   limits      of one configuration, and what a VM needs
scheduler   events in, decisions out: a kernel    site        a model of a site, from and to JSON
book        who holds what: its account           simulation  the scheduler against that model
tokens      what it keeps of each                 brake       streams of a datastore by latency
"""

from vadpipe.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
