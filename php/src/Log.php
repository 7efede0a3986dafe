<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Logs failures to a PSR-3 logger, a callable (level, message, context), or error_log(). Never throws.
 *
 * @internal
 */
final class Log
{
    /** The last message since the property was set to null. */
    public ?string $lastMessage = null;

    public function __construct(private readonly mixed $sink = null)
    {
    }

    /**
     * @param string $message a sentence; control characters in it are replaced
     * @param array<string, mixed> $context
     */
    public function warning(string $message, array $context = []): void
    {
        $message = preg_replace('/[\x00-\x1f\x7f]+/', ' ', $message) ?? '';
        $undefined = '/Call to undefined function Chatws\\\\(\w+)\(\)/';
        $message = preg_replace($undefined, 'php.ini disables $1() (disable_functions)', $message) ?? $message;
        $this->lastMessage = $message;
        try {
            if (\is_object($this->sink) && method_exists($this->sink, 'warning')) {
                $this->sink->warning("chatws: {$message}", $context);
            } elseif (\is_callable($this->sink)) {
                ($this->sink)('warning', "chatws: {$message}", $context);
            } else {
                error_log("chatws: {$message}");
            }
        } catch (\Throwable) {
            // A failing log must not fail the request.
        }
    }
}
