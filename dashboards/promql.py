"""The few shapes of PromQL that panels are made of."""

from __future__ import annotations

from dashboards.panels import Link, Query

RATE = "$__rate_interval"


def of(metric: str, *matchers: str) -> str:
    """A metric of the nodes that were chosen, and what else must hold."""
    chosen = ", ".join(('instance=~"$instance"', *matchers))
    return f"{metric}{{{chosen}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """How much a counter grows a second, of all replicas."""
    return f"{_sum(by)} (rate({of(metric, *matchers)}[{RATE}]))"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """The value that so large a share of observations does not exceed."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({of(histogram + '_bucket', *matchers)}[{RATE}])))"


def quantiles(histogram: str, *matchers: str, shares: tuple[float, ...] = (0.5, 0.95, 0.99)) -> tuple[Query, ...]:
    """One query for each share."""
    return tuple(Query(quantile(share, histogram, *matchers), f"p{share * 100:g}") for share in shares)


def buckets(histogram: str, *matchers: str) -> tuple[Query, ...]:
    """For a heat map."""
    return (Query(rate(histogram + "_bucket", *matchers, by="le"), "{{le}}"),)


def to(uid: str, title: str) -> Link:
    """To another dashboard."""
    return Link(title=title, url=f"/d/{uid}")


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"
