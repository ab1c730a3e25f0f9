"""Config section of approvals: the people who must approve a version between the gate and its promotion."""

import datetime as dt
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from towline.config.record import Duration, Frozen

KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]


class ApprovalConfig(Frozen):
    """A version that passes the gate waits for approvals.

    With two or more, none may come from the person who started the run.
    """

    required: int = Field(1, ge=1, le=10, description="approvals of different people")
    approvers: tuple[KeyId, ...] = Field(
        (), description="ids of the API keys that may approve, in quotes; empty: every key with the scope admin"
    )
    expires: Duration = Field(dt.timedelta(days=7), description="after this time the version is refused")

    @model_validator(mode="after")
    def _check(self) -> "ApprovalConfig":
        if self.approvers and len(set(self.approvers)) < self.required:
            raise ValueError(
                f"approval.required is {self.required}, and approval.approvers lists {len(set(self.approvers))} keys; "
                "list the keys of as many people"
            )
        if self.expires < dt.timedelta(minutes=1):
            raise ValueError("approval.expires must be at least a minute, such as 7d")
        return self
