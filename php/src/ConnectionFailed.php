<?php

declare(strict_types=1);

namespace Chatws;

/**
 * The connection is of no use any more. Never leaves this library.
 *
 * @internal
 */
final class ConnectionFailed extends \RuntimeException
{
    /**
     * @param bool $retry whether another connection to the same address, at once, may do better
     * @param bool $elsewhere whether another address may
     */
    public function __construct(string $message, public readonly bool $retry, public readonly bool $elsewhere = true)
    {
        parent::__construct($message);
    }

    /** The same, and where it was. */
    public function at(string $address): self
    {
        $message = $this->getMessage();

        return str_contains($message, $address)
            ? $this
            : new self("{$message} ({$address})", $this->retry, $this->elsewhere);
    }
}
