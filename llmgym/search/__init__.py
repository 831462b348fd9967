"""One search for every MDP: it knows no game and no language.

It is given, for each new node, K candidate actions with priors and a value, and steps states through pure rules.
"""

from llmgym.search.options import SearchOptions
from llmgym.search.proposals import LegalActions, Proposal, Proposals, SearchError
from llmgym.search.search import Result, Search

__all__ = ["LegalActions", "Proposal", "Proposals", "Result", "Search", "SearchError", "SearchOptions"]
