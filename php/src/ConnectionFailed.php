<?php

declare(strict_types=1);

namespace Chatws;

/**
 * The connection is unusable. Internal: no public method throws it.
 *
 * @internal
 */
final class ConnectionFailed extends \RuntimeException
{
    /**
     * @param bool $retryHere whether an immediate second connection to the same address may succeed
     * @param bool $retryElsewhere whether another address may succeed
     */
    public function __construct(
        string $message,
        public readonly bool $retryHere,
        public readonly bool $retryElsewhere = true,
    ) {
        parent::__construct($message);
    }

    /** Returns the same failure with the address in its message. */
    public function withAddress(string $address): self
    {
        $message = $this->getMessage();

        return str_contains($message, $address)
            ? $this
            : new self("{$message} ({$address})", $this->retryHere, $this->retryElsewhere);
    }
}
