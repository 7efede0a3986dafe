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
    /** @param bool $retry whether another connection, at once, may do better */
    public function __construct(string $message, public readonly bool $retry)
    {
        parent::__construct($message);
    }
}
