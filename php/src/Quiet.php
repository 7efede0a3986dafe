<?php

declare(strict_types=1);

namespace Chatws;

/**
 * PHP's input and output functions warn where they fail. Here that is expected, and must not reach the application's
 * error handler: some turn every warning into an exception, `@` or not.
 *
 * @internal
 */
final class Quiet
{
    /** What PHP last warned of, without the function's name in front. */
    public static string $warning = '';

    /**
     * @template T
     * @param callable(): T $do
     * @return T
     */
    public static function call(callable $do): mixed
    {
        self::$warning = '';
        set_error_handler(static function (int $level, string $message): bool {
            self::$warning = preg_replace('/^[\w:]+\(\): /', '', $message) ?? $message;

            return true;
        });
        try {
            return $do();
        } finally {
            restore_error_handler();
        }
    }
}
