<?php

declare(strict_types=1);

namespace Chatws;

/**
 * A moment of the monotonic clock until which something may take.
 *
 * @internal
 */
final class Deadline
{
    private function __construct(private readonly float $at)
    {
    }

    /** So many milliseconds from now. */
    public static function in(float $milliseconds): self
    {
        return new self(self::now() + $milliseconds);
    }

    /** The earlier of this one and so many milliseconds from now. */
    public function orIn(float $milliseconds): self
    {
        return new self(min($this->at, self::now() + $milliseconds));
    }

    /** Milliseconds left; 0 when it has passed. */
    public function left(): float
    {
        return max(0.0, $this->at - self::now());
    }

    /** Milliseconds of the monotonic clock. */
    public static function now(): float
    {
        return hrtime(true) / 1e6;
    }
}
