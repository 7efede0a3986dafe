<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Limits the time that calls may block: all calls of a request together, or each call alone in a CLI process.
 *
 * @internal
 */
final class TimeBudget
{
    /** Milliseconds that earlier calls of this request have used. */
    private float $spent = 0.0;
    private float $startedAt = 0.0;

    public function __construct(private readonly int $milliseconds, private readonly bool $perRequest)
    {
    }

    /** Starts a call. Returns its deadline, or null if the budget is used up. */
    public function begin(): ?Deadline
    {
        if (!$this->perRequest) {
            $this->spent = 0.0;
        }
        $remaining = $this->milliseconds - $this->spent;
        if ($remaining < 1.0) {
            return null;
        }
        $this->startedAt = Deadline::now();

        return Deadline::after($remaining);
    }

    /** Ends the call that begin() started. */
    public function end(): void
    {
        $this->spent += Deadline::now() - $this->startedAt;
    }

    /** Resets the budget for a new request. */
    public function renew(): void
    {
        $this->spent = 0.0;
    }
}
