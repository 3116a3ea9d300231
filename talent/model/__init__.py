"""The TALENT network (model.md of the design): one subject a file, `talent.py` puts them together."""

from talent.model.build import build_model
from talent.model.talent import Prompt, TalentModel, TalentOutput

__all__ = ["Prompt", "TalentModel", "TalentOutput", "build_model"]
