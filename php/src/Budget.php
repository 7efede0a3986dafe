<?php

declare(strict_types=1);

namespace Chatws;

/**
 * How long a request may be held up: all its calls together, or each by itself in a process without requests.
 *
 * @internal
 */
final class Budget
{
    private float $spent = 0.0;
    private float $began = 0.0;

    public function __construct(private readonly int $milliseconds, private readonly bool $perRequest)
    {
    }

    /** A call begins. Null when the time is used up. */
    public function begin(): ?Deadline
    {
        if (!$this->perRequest) {
            $this->spent = 0.0;
        }
        $left = $this->milliseconds - $this->spent;
        if ($left < 1.0) {
            return null;
        }
        $this->began = Deadline::now();

        return Deadline::in($left);
    }

    /** The call that began has ended. */
    public function end(): void
    {
        $this->spent += Deadline::now() - $this->began;
    }

    /** Another request begins. */
    public function renew(): void
    {
        $this->spent = 0.0;
    }
}
