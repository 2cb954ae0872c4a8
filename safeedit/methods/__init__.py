"""The mathematics that several editors, attacks or auditors need; every module says its source."""
