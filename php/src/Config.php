<?php

declare(strict_types=1);

namespace Chatws;

/**
 * The settings of the client: addresses, timeouts, secrets, spool. Times are in milliseconds, sizes in bytes.
 *
 * An invalid value never throws. It is logged by the first client, and the default is used.
 */
final class Config
{
    public const DEFAULT_ADDRESS = '127.0.0.1:8081';

    /** SAPIs where all static state ends with the request. In other processes (workers, Octane) it may not. */
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
        'CHATWS_SECRET' => 'token_secret',
        'CHATWS_SECRET_FILES' => 'token_secret_file',
        'CHATWS_TOKEN_AUDIENCE' => 'token_audience',
    ];

    /** Whether the time budget covers all calls of a request together, or each call alone. */
    public readonly bool $perRequest;

    /**
     * @param string $address "127.0.0.1:8081", "[::1]:8081", "unix:/run/chatws/push.sock" or "tls://chat.example:8443".
     *     Use an IP address: the system's resolver has no timeout for host names. Several addresses, separated by
     *     commas, are nodes of one chatws. If one is unavailable, the client tries the next.
     * @param string|null $secret the server's push secret, if it has one
     * @param int $connectTimeoutMs for opening the connection
     * @param int $answerTimeoutMs without progress: no byte was sent and no response received
     * @param int $budgetMs maximum for a whole request (see $perRequest)
     * @param int $pauseMs time without attempts after a failed delivery; 0: the next call tries again
     * @param string|null $spoolDir absolute path of a directory for undelivered lines, created if missing; null: none
     * @param int $spoolMaxFiles if the spool holds this many files, further lines are lost and logged
     * @param int $maxLineSize maximum size of a line; the same as the server's --max-line-size
     * @param string|null $tlsCa PEM file with the CA that signed the server's certificate; null: the system's CAs
     * @param string|null $tlsName the name in the certificate; null: the host of the address
     * @param string|null $tokenSecret the secret that signs tokens: the server's --secret-file or CHATWS_SECRET
     * @param string|null $tokenAudience the tokens' `aud`: as the server's setting
     * @param callable(string, string, array<string, mixed>): mixed|object|null $logger a PSR-3 logger, or a callable
     *     that takes level, message and context; null: error_log()
     * @param bool|null $perRequest null: true under PHP-FPM and similar servers, false in a CLI process
     * @param list<string> $problems errors in the settings, which the first client logs
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
        public readonly ?string $tokenSecret = null,
        public readonly ?string $tokenAudience = null,
        public readonly mixed $logger = null,
        ?bool $perRequest = null,
        public readonly array $problems = [],
    ) {
        $this->perRequest = $perRequest ?? \in_array(\PHP_SAPI, self::REQUEST_SAPIS, true);
    }

    /**
     * Reads the environment variables that README.md lists. An empty variable counts as not set. Quotation marks around
     * a value are removed, because some loaders of `.env` files leave them.
     *
     * @param array<string, mixed> $settings as for fromArray(); they take precedence over the environment
     */
    public static function fromEnv(array $settings = []): self
    {
        $values = [];
        $problems = [];
        foreach (self::VARIABLES as $variable => $key) {
            $value = \function_exists('getenv') ? getenv($variable) : false; // php.ini may disable getenv()
            if ($value === false) {
                // The .env loader of a framework may fill only these.
                $value = $_ENV[$variable] ?? $_SERVER[$variable] ?? '';
            }
            $value = \is_scalar($value) ? trim((string) $value) : '';
            if (preg_match('/^(["\'])(.*)\1$/s', $value, $match) === 1) {
                if (\in_array($key, ['secret', 'token_secret'], true)) {
                    // The server uses the same variable literally, so the marks may belong to the secret.
                    $problems[] = "{$variable} is in quotation marks, which count as part of the secret";
                } else {
                    $value = $match[2];
                }
            }
            if ($value !== '') {
                $values[$key] = $value;
            }
        }

        return self::make($settings + $values, $problems);
    }

    /**
     * Reads an array, such as a framework's configuration. Null counts as not set, a number may be a string.
     *
     * @param array<string, mixed> $settings the constructor's parameters in snake_case; and `secret_file`,
     *     `token_secret_file`: files that hold a secret (if there are several, the first one signs)
     */
    public static function fromArray(array $settings): self
    {
        return self::make($settings, []);
    }

    /**
     * @param array<string, mixed> $settings
     * @param list<string> $problems errors so far
     */
    private static function make(array $settings, array $problems): self
    {
        $settings = array_filter($settings, static fn (mixed $value): bool => $value !== null);
        $text = static fn (string $key): ?string => self::text($settings, $key);
        $integer = static function (string $key, int $default, int $minimum = 1) use ($settings, &$problems): int {
            return self::integer($settings, $key, $default, $minimum, $problems);
        };

        return new self(
            address: $text('address') ?? self::DEFAULT_ADDRESS,
            secret: self::secret($settings, 'secret', $problems),
            connectTimeoutMs: $integer('connect_timeout_ms', 200),
            answerTimeoutMs: $integer('answer_timeout_ms', 500),
            budgetMs: $integer('budget_ms', 700),
            pauseMs: $integer('pause_ms', 1000, 0),
            spoolDir: self::spoolDirectory($settings, $problems),
            spoolMaxFiles: $integer('spool_max_files', 10_000),
            maxLineSize: $integer('max_line_size', 1_048_576),
            tlsCa: $text('tls_ca'),
            tlsName: $text('tls_name'),
            tokenSecret: self::secret($settings, 'token_secret', $problems),
            tokenAudience: $text('token_audience'),
            logger: $settings['logger'] ?? null,
            perRequest: isset($settings['per_request']) ? (bool) $settings['per_request'] : null,
            problems: $problems,
        );
    }

    /** @param array<string, mixed> $settings */
    private static function text(array $settings, string $key): ?string
    {
        $value = $settings[$key] ?? null;
        $value = \is_scalar($value) ? trim((string) $value) : '';

        return $value !== '' ? $value : null;
    }

    /**
     * @param array<string, mixed> $settings
     * @param list<string> $problems
     */
    private static function integer(array $settings, string $key, int $default, int $minimum, array &$problems): int
    {
        $value = $settings[$key] ?? $default;
        $options = ['options' => ['min_range' => $minimum]];
        $number = \is_bool($value) ? false : filter_var($value, \FILTER_VALIDATE_INT, $options);
        if ($number === false) {
            $problems[] = "{$key} must be an integer of at least {$minimum}; using the default, {$default}";

            return $default;
        }

        return $number;
    }

    /**
     * Returns the secret of the setting, or that of the file in the setting with the suffix `_file`.
     *
     * @param array<string, mixed> $settings
     * @param list<string> $problems
     */
    private static function secret(array $settings, string $key, array &$problems): ?string
    {
        if (!isset($settings["{$key}_file"]) || isset($settings[$key])) {
            return self::text($settings, $key);
        }
        $path = preg_split('/[\s,]+/', trim((string) $settings["{$key}_file"]))[0] ?? '';
        // is_readable() also warns if open_basedir forbids the path.
        $text = ErrorSuppressor::call(
            static fn (): string|false => is_readable($path) ? file_get_contents($path) : false,
        );
        if ($text === false || trim($text) === '') {
            $problems[] = "{$key}_file: cannot read {$path}, or it is empty";

            return null;
        }

        return trim($text);
    }

    /**
     * @param array<string, mixed> $settings
     * @param list<string> $problems
     */
    private static function spoolDirectory(array $settings, array &$problems): ?string
    {
        $directory = self::text($settings, 'spool_dir');
        if ($directory !== null && preg_match('~^(?:/|\\\\\\\\|[A-Za-z]:[/\\\\])~', $directory) !== 1) {
            // The current directory is that of the script, whose files web servers deliver.
            $problems[] = "spool_dir must be an absolute path; \"{$directory}\" is not used as a spool";

            return null;
        }

        return $directory;
    }
}
