from .facts import JobFacts as JobFacts
from .gathering import Gathered as Gathered
from .gathering import gather as gather
from .report import PreflightReport as PreflightReport
from .report import job_facts as job_facts
from .report import preflight as preflight
from .report import preflight_all as preflight_all
from .rules import RULES as RULES
