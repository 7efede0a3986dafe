<?php

declare(strict_types=1);

namespace Chatws;

/**
 * How chatws is reached and how long anybody may wait for it. Times are in milliseconds, sizes in bytes.
 *
 * A wrong value never throws: what it makes impossible is logged when it is tried.
 */
final class Config
{
    public const DEFAULT_ADDRESS = '127.0.0.1:8081';

    /** Servers where all static state ends with the request. Elsewhere (workers, Octane) there is no telling. */
    private const REQUEST_SAPIS = ['fpm-fcgi', 'cgi-fcgi', 'apache2handler', 'litespeed', 'cli-server'];

    /** Environment variable => key of fromArray(). */
    private const VARIABLES = [
        'CHATWS_PUSH_ADDRESS' => 'address',
        'CHATWS_PUSH_SECRET' => 'secret',
        'CHATWS_PUSH_SECRET_FILE' => 'secret_file',
        'CHATWS_PUSH_CONNECT_TIMEOUT_MS' => 'connect_timeout_ms',
        'CHATWS_PUSH_ANSWER_TIMEOUT_MS' => 'answer_timeout_ms',
        'CHATWS_PUSH_BUDGET_MS' => 'budget_ms',
        'CHATWS_PUSH_PAUSE_MS' => 'pause_ms',
        'CHATWS_PUSH_TLS_CA' => 'tls_ca',
        'CHATWS_PUSH_TLS_NAME' => 'tls_name',
        'CHATWS_SPOOL_DIR' => 'spool_dir',
        'CHATWS_SPOOL_MAX_FILES' => 'spool_max_files',
        'CHATWS_MAX_LINE_SIZE' => 'max_line_size',
        'CHATWS_SECRET' => 'ticket_secret',
        'CHATWS_SECRET_FILE' => 'ticket_secret_file',
        'CHATWS_TICKET_AUDIENCE' => 'ticket_audience',
    ];

    /** Whether the budget is for all calls of a request together, or for each call by itself. */
    public readonly bool $perRequest;

    /**
     * @param string $address "127.0.0.1:8081", "[::1]:8081", "unix:/run/chatws/push.sock" or "tls://chat.example:8443".
     *     A host name is looked up by the system's resolver, which keeps no time-out: give an IP address. Several with
     *     commas between them are nodes of one chatws: where one cannot be reached, the next is asked.
     * @param string|null $secret the push secret, where the server has one
     * @param int $connectTimeoutMs for opening the connection
     * @param int $answerTimeoutMs without any progress: no byte taken, no answer come
     * @param int $budgetMs for a whole request (see $perRequest), whatever happens
     * @param int $pauseMs after the server could not be reached: for so long it is not tried again; 0: it is
     * @param string|null $spoolDir a directory for what could not be delivered, made when missing; null: there is none
     * @param int $spoolMaxFiles when so many wait there, what comes next is lost (and logged)
     * @param int $maxLineSize of a line; as the server's --max-line-size
     * @param string|null $tlsCa a PEM file with the authority that signed the server's certificate; null: the system's
     * @param string|null $tlsName the name in the certificate; null: the host of the address
     * @param string|null $ticketSecret the secret that signs tickets: the server's --secret-file or CHATWS_SECRET
     * @param string|null $ticketAudience the tickets' `aud`: the server's --ticket-audience
     * @param callable(string, string, array<string, mixed>): mixed|object|null $logger a PSR-3 logger, or a callable
     *     that takes level, message and context; null: error_log()
     * @param bool|null $perRequest null: for a request under FPM and its like, for each call in a CLI process
     * @param list<string> $problems what was wrong with the settings, to be logged at the first use
     */
    public function __construct(
        public readonly string $address = self::DEFAULT_ADDRESS,
        #[\SensitiveParameter]
        public readonly ?string $secret = null,
        public readonly int $connectTimeoutMs = 200,
        public readonly int $answerTimeoutMs = 500,
        public readonly int $budgetMs = 700,
        public readonly int $pauseMs = 1000,
        public readonly ?string $spoolDir = null,
        public readonly int $spoolMaxFiles = 10_000,
        public readonly int $maxLineSize = 1_048_576,
        public readonly ?string $tlsCa = null,
        public readonly ?string $tlsName = null,
        #[\SensitiveParameter]
        public readonly ?string $ticketSecret = null,
        public readonly ?string $ticketAudience = null,
        public readonly mixed $logger = null,
        ?bool $perRequest = null,
        public readonly array $problems = [],
    ) {
        $this->perRequest = $perRequest ?? \in_array(\PHP_SAPI, self::REQUEST_SAPIS, true);
    }

    /**
     * From the environment; README.md lists the variables. One that is empty counts as not set.
     *
     * @param array<string, mixed> $settings as for fromArray(); they go over the environment
     */
    public static function fromEnv(array $settings = []): self
    {
        $found = [];
        foreach (self::VARIABLES as $variable => $key) {
            $value = getenv($variable);
            if ($value === false) {
                // a framework's .env loader may fill these alone
                $value = $_ENV[$variable] ?? $_SERVER[$variable] ?? '';
            }
            if (\is_scalar($value) && (string) $value !== '') {
                $found[$key] = (string) $value;
            }
        }

        return self::fromArray($settings + $found);
    }

    /**
     * From an array, such as a framework's configuration. Null counts as left out, a number may be a string.
     *
     * @param array<string, mixed> $settings the constructor's parameters in snake_case; and `secret_file`,
     *     `ticket_secret_file`: files that hold a secret (of several the first signs)
     */
    public static function fromArray(array $settings): self
    {
        $problems = [];
        $settings = array_filter($settings, static fn (mixed $value): bool => $value !== null);
        foreach (['secret', 'ticket_secret'] as $key) {
            if (isset($settings["{$key}_file"]) && !isset($settings[$key])) {
                $path = preg_split('/[\s,]+/', trim((string) $settings["{$key}_file"]))[0] ?? '';
                $text = is_readable($path)
                    ? Quiet::call(static fn (): string|false => file_get_contents($path))
                    : false;
                if ($text === false || trim($text) === '') {
                    $problems[] = "{$key}_file: {$path} cannot be read, or is empty";
                } else {
                    $settings[$key] = trim($text);
                }
            }
        }
        $number = static function (string $key, int $default, int $least = 1) use ($settings, &$problems): int {
            $value = $settings[$key] ?? $default;
            $options = ['options' => ['min_range' => $least]];
            $found = \is_bool($value) ? false : filter_var($value, \FILTER_VALIDATE_INT, $options);
            if ($found === false) {
                $problems[] = "{$key} must be a number from {$least}; {$default} is taken";

                return $default;
            }

            return $found;
        };
        $text = static function (string $key) use ($settings): ?string {
            $value = $settings[$key] ?? null;

            return \is_scalar($value) && (string) $value !== '' ? (string) $value : null;
        };

        return new self(
            address: $text('address') ?? self::DEFAULT_ADDRESS,
            secret: $text('secret'),
            connectTimeoutMs: $number('connect_timeout_ms', 200),
            answerTimeoutMs: $number('answer_timeout_ms', 500),
            budgetMs: $number('budget_ms', 700),
            pauseMs: $number('pause_ms', 1000, 0),
            spoolDir: $text('spool_dir'),
            spoolMaxFiles: $number('spool_max_files', 10_000),
            maxLineSize: $number('max_line_size', 1_048_576),
            tlsCa: $text('tls_ca'),
            tlsName: $text('tls_name'),
            ticketSecret: $text('ticket_secret'),
            ticketAudience: $text('ticket_audience'),
            logger: $settings['logger'] ?? null,
            perRequest: isset($settings['per_request']) ? (bool) $settings['per_request'] : null,
            problems: $problems,
        );
    }
}
