"""Say of a policy that was loaded what its rules cannot do, so that nobody has to find out."""

from collections.abc import Collection, Mapping

from authz_server.core.snapshot import Snapshot
from authz_server.servers.event_log import EventLog


class PolicyWarnings:
    """Warns of bundles in shadow mode, and of approver groups that nobody belongs to.

    Each is said at the start, and again when a reload brings another one. `groups` are those that
    have members. One thread at a time may call it.
    """

    def __init__(self, log: EventLog, groups: Collection[str]) -> None:
        self._log = log
        self._groups = frozenset(groups)
        self._shadowed: Mapping[str, str] = {}  # revisions of bundles that were warned of
        self._unanswered: frozenset[tuple[str, str]] = frozenset()  # bundles and groups, likewise

    def loaded(self, snapshot: Snapshot) -> None:
        """Warn of what `snapshot` brought."""
        self._warn_of_shadow(snapshot)
        self._warn_of_groups(snapshot)

    def _warn_of_shadow(self, snapshot: Snapshot) -> None:
        serving = {name: snapshot.policies[name].revision for name in snapshot.shadowed}
        for name, revision in serving.items():
            if self._shadowed.get(name) != revision:
                why = "its verdicts are recorded and not enforced: what it would deny passes"
                self._log.warning("bundle_in_shadow", bundle=name, revision=revision, why=why)
        self._shadowed = serving

    def _warn_of_groups(self, snapshot: Snapshot) -> None:
        found = frozenset(
            (name, group)
            for name, policy in snapshot.policies.items()
            for group in policy.approver_groups - self._groups
        )
        for name, group in sorted(found - self._unanswered):
            why = "nobody can approve: `approvals.groups` names no member"
            self._log.warning("approver_group_empty", bundle=name, group=group, why=why)
        self._unanswered = found
