<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Keeps PHP's warnings away from the application's error handler.
 *
 * PHP's I/O functions warn when they fail, which this library expects and handles. Some applications turn every
 * warning into an exception, even with the operator `@`.
 *
 * @internal
 */
final class ErrorSuppressor
{
    /** The last suppressed warning, without the function name that PHP puts in front. */
    public static string $warning = '';

    /**
     * Calls a function and suppresses its warnings.
     *
     * @template T
     * @param callable(): T $function
     * @return T
     */
    public static function call(callable $function): mixed
    {
        self::$warning = '';
        set_error_handler(static function (int $level, string $message): bool {
            self::$warning = preg_replace('/^[\w:]+\(\): /', '', $message) ?? $message;

            return true;
        });
        try {
            return $function();
        } finally {
            restore_error_handler();
        }
    }
}
