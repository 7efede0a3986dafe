<?php

declare(strict_types=1);

namespace Chatws;

/**
 * A point in time on the monotonic clock.
 *
 * @internal
 */
final class Deadline
{
    private function __construct(private readonly float $at)
    {
    }

    /** Returns the deadline that many milliseconds from now. */
    public static function after(float $milliseconds): self
    {
        return new self(self::now() + $milliseconds);
    }

    /** Returns the earlier of this deadline and the one that many milliseconds from now. */
    public function orAfter(float $milliseconds): self
    {
        return new self(min($this->at, self::now() + $milliseconds));
    }

    /** Returns the milliseconds left, 0 if the deadline has passed. */
    public function remaining(): float
    {
        return max(0.0, $this->at - self::now());
    }

    /** Sleeps. If php.ini disables usleep(), it returns at once. */
    public static function sleep(float $milliseconds): void
    {
        if (\function_exists('usleep')) {
            usleep((int) ($milliseconds * 1000));
        }
    }

    /** Returns the time of the monotonic clock in milliseconds. */
    public static function now(): float
    {
        return hrtime(true) / 1e6;
    }
}
