"""Everything a run writes to disk, as pydantic records. No torch here.

A :class:`RunRecord` holds enough to recompute every verdict and to draw every report:
reports are pure functions of it. Records never hold text from the data: items appear
under keyed digests (see :meth:`safeedit.contracts.RunContext.digest`).
"""

from safeedit.records.metrics import ATTACK_CLASSES as ATTACK_CLASSES
from safeedit.records.metrics import ATTACK_NAMES as ATTACK_NAMES
from safeedit.records.metrics import BOUNDS as BOUNDS
from safeedit.records.metrics import AttackClass as AttackClass
from safeedit.records.metrics import AuditRecord as AuditRecord
from safeedit.records.metrics import Comparison as Comparison
from safeedit.records.metrics import Direction as Direction
from safeedit.records.metrics import Interval as Interval
from safeedit.records.metrics import Metric as Metric
from safeedit.records.metrics import MetricSpec as MetricSpec
from safeedit.records.metrics import PassingSide as PassingSide
from safeedit.records.metrics import Record as Record
from safeedit.records.metrics import ScorerCard as ScorerCard
from safeedit.records.metrics import ScorerCheck as ScorerCheck
from safeedit.records.metrics import Split as Split
from safeedit.records.metrics import Status as Status
from safeedit.records.run import RECOVERED as RECOVERED
from safeedit.records.run import SCHEMA_VERSION as SCHEMA_VERSION
from safeedit.records.run import AdapterRecord as AdapterRecord
from safeedit.records.run import AttackPoint as AttackPoint
from safeedit.records.run import AttackRecord as AttackRecord
from safeedit.records.run import CastRecord as CastRecord
from safeedit.records.run import ControlRecord as ControlRecord
from safeedit.records.run import DosePoint as DosePoint
from safeedit.records.run import EditRecord as EditRecord
from safeedit.records.run import EnvironmentRecord as EnvironmentRecord
from safeedit.records.run import ExportRecord as ExportRecord
from safeedit.records.run import Glossary as Glossary
from safeedit.records.run import LayersTried as LayersTried
from safeedit.records.run import ModelRecord as ModelRecord
from safeedit.records.run import Nearness as Nearness
from safeedit.records.run import ResourceRecord as ResourceRecord
from safeedit.records.run import RunRecord as RunRecord
from safeedit.records.run import SeedVerdict as SeedVerdict
from safeedit.records.run import TensorChange as TensorChange
from safeedit.records.run import Verdict as Verdict
from safeedit.records.run import VocabularyReading as VocabularyReading
