<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Sends lines to the server within the time budget of the request.
 *
 * It uses one connection. With one address it retries once, with several it tries each address once. Lines that could
 * not be delivered go to the spool, if there is one.
 *
 * @internal
 */
final class Sender
{
    /** Before the retry: a server that closes the connection may be restarting. */
    private const RETRY_PAUSE_MS = 20.0;
    /** Limits for the spooled lines of one call. Larger batches would use up the budget of the request. */
    private const SPOOLED_LINES = 500;
    private const SPOOLED_BYTES = 512 * 1024;

    private readonly AddressList $addresses;
    private readonly Connection $connection;
    private readonly TimeBudget $budget;
    private readonly ?Spool $spool;
    private float $pausedUntil = 0.0;
    private string $pauseReason = '';

    public function __construct(private readonly Config $config, private readonly Log $log)
    {
        $this->budget = new TimeBudget($config->budgetMs, $config->perRequest);
        $this->spool = $config->spoolDir === null ? null : new Spool($config->spoolDir, $config->spoolMaxFiles);
        $this->addresses = new AddressList($config->address, $this->spool);
        $this->connection = new Connection($config, $this->addresses);
    }

    /**
     * Sends the lines of the spool, then these lines.
     *
     * @param list<Line> $lines
     * @return array<int, array<string, mixed>> line index => response, rejections included. A line without a response
     *     has been logged, and spooled if possible.
     */
    public function send(array $lines): array
    {
        try {
            [$responses, $problem] = $this->deliver($lines);
        } catch (\Throwable $error) {
            [$responses, $problem] = [[], $error->getMessage()]; // no error may lose a line
        }
        $undelivered = [];
        foreach ($lines as $index => $line) {
            $response = $responses[$index] ?? null;
            if ($response === null || self::isRetryable($response)) {
                $undelivered[] = $line;
                $problem = $response === null ? $problem : self::describe($response);
            } elseif (!$response['ok']) {
                $this->log->warning("{$line->name} was rejected: " . self::describe($response), ['id' => $line->id]);
            }
        }
        if ($undelivered !== []) {
            $this->spoolAndLog($undelivered, $problem);
        }

        return $responses;
    }

    /** Sends the lines of the spool until it is empty or sending fails. Returns how many remain. */
    public function flush(): int
    {
        $before = \PHP_INT_MAX;
        while (($remaining = $this->spool?->count() ?? 0) > 0 && $remaining < $before) {
            $before = $remaining;
            [, $problem] = $this->deliver([]);
            if ($problem !== '') {
                $this->log->warning("the spool was not sent: {$problem}");
                break;
            }
        }

        return $this->spool?->count() ?? 0;
    }

    /** Resets the time budget for a new request. */
    public function renew(): void
    {
        $this->budget->renew();
    }

    public function close(): void
    {
        $this->connection->close();
    }

    /**
     * @param list<Line> $lines
     * @return array{array<int, array<string, mixed>>, string} line index => response; and the problem, or ''
     */
    private function deliver(array $lines): array
    {
        if (Deadline::now() < $this->pausedUntil) {
            return [[], "not tried, after: {$this->pauseReason}"];
        }
        $deadline = $this->budget->begin();
        if ($deadline === null) {
            return [[], "the time budget of this request ({$this->config->budgetMs} ms) is used up"];
        }
        try {
            $spooled = $this->claimSpooled();
            if ($spooled === [] && $lines === []) {
                return [[], ''];
            }
            [$responses, $problem] = $this->attempt([...array_values($spooled), ...$lines], $deadline);
            $this->settleSpooled($spooled, $responses);
            $ownResponses = [];
            foreach (array_keys($lines) as $index) {
                if (isset($responses[\count($spooled) + $index])) {
                    $ownResponses[$index] = $responses[\count($spooled) + $index];
                }
            }

            return [$ownResponses, $problem];
        } finally {
            $this->spool?->release();
            $this->budget->end();
        }
    }

    /** @return array<string, Line> file name => line; empty if reading fails, which must not stop new lines */
    private function claimSpooled(): array
    {
        try {
            return $this->spool?->claim(self::SPOOLED_LINES, self::SPOOLED_BYTES, $this->log) ?? [];
        } catch (\Throwable $error) {
            $this->log->warning("cannot read the spool: {$error->getMessage()}");

            return [];
        }
    }

    /**
     * Removes the spooled lines that the server has accepted, and sets aside those that it has rejected.
     *
     * @param array<string, Line> $spooled file name => line
     * @param array<int, array<string, mixed>> $responses to these lines, in this order, and to others behind them
     */
    private function settleSpooled(array $spooled, array $responses): void
    {
        foreach (array_keys($spooled) as $index => $name) {
            $response = $responses[$index] ?? null;
            if ($response === null) {
                continue;
            }
            if ($response['ok']) {
                $this->spool?->remove($name);
            } elseif (!self::isRetryable($response)) {
                $line = $spooled[$name];
                $reason = self::describe($response);
                $this->log->warning("{$line->name} from the spool was rejected: {$reason}", ['id' => $line->id]);
                $this->spool?->reject($name);
            }
        }
    }

    /**
     * Sends lines over one or more connections until each has a final response or the deadline is too near.
     *
     * @param list<Line> $lines
     * @return array{array<int, array<string, mixed>>, string} line index => response; and the problem, or ''
     */
    private function attempt(array $lines, Deadline $deadline): array
    {
        $responses = [];
        $failure = null;
        $failures = [];
        $hasAlternatives = $this->addresses->hasAlternatives();
        $maxAttempts = $hasAlternatives ? \count($this->addresses->all) : 2;
        for ($attempt = 0; $attempt < $maxAttempts; ++$attempt) {
            $pending = self::pending($lines, $responses);
            if ($pending === []) {
                break;
            }
            if ($attempt > 0) {
                if ($deadline->remaining() <= 2 * self::RETRY_PAUSE_MS) {
                    break;
                }
                if (!$hasAlternatives) {
                    Deadline::sleep(self::RETRY_PAUSE_MS);
                }
            }
            // A silent address must leave an equal share of the time to each of the others.
            $timeout = $hasAlternatives ? $deadline->remaining() / ($maxAttempts - $attempt) : \INF;
            [$received, $failure] = $this->connection->exchange(array_values($pending), $deadline, $timeout);
            foreach (array_keys($pending) as $position => $index) {
                if (isset($received[$position])) {
                    $responses[$index] = $received[$position];
                }
            }
            if ($failure !== null) {
                $failures[] = $failure->getMessage();
                if (!($hasAlternatives ? $failure->retryElsewhere : $failure->retryHere)) {
                    break;
                }
            }
            if ($failure === null && self::pending($pending, $responses) === []) {
                $this->connection->markWorked();
            } elseif ($hasAlternatives) {
                $this->connection->markFailed();
            }
        }
        if ($failure !== null && \count($responses) < \count($lines)) {
            $this->pausedUntil = Deadline::now() + $this->config->pauseMs;
            $this->pauseReason = $hasAlternatives ? implode('; ', $failures) : $failure->getMessage();

            return [$responses, $this->pauseReason];
        }

        return [$responses, ''];
    }

    /**
     * Returns the lines without a final response.
     *
     * @param array<int, Line> $lines
     * @param array<int, array<string, mixed>> $responses
     * @return array<int, Line>
     */
    private static function pending(array $lines, array $responses): array
    {
        return array_filter(
            $lines,
            static fn (int $index): bool => !isset($responses[$index]) || self::isRetryable($responses[$index]),
            \ARRAY_FILTER_USE_KEY,
        );
    }

    /** @param non-empty-list<Line> $lines that were not delivered */
    private function spoolAndLog(array $lines, string $problem): void
    {
        $spoolable = array_values(array_filter($lines, static fn (Line $line): bool => $line->isSpoolable));
        $stored = $this->spool === null || $spoolable === [] ? 0 : $this->spool->write($spoolable);
        $subject = \count($lines) === 1 ? $lines[0]->name : \count($lines) . ' lines';
        $missing = \count($spoolable) - $stored;
        $outcome = match (true) {
            $this->spool === null || $spoolable === [] => '',
            $missing > 0 => "; {$missing} not spooled: {$this->spool->problem}",
            $stored < \count($lines) => "; {$stored} spooled",
            default => '; spooled',
        };
        $context = ['ids' => array_map(static fn (Line $line): string => $line->id, \array_slice($lines, 0, 20))];
        $this->log->warning("{$subject} not delivered: {$problem}{$outcome}", $context);
    }

    /**
     * Whether the server rejected the line for a temporary reason (docs/protocol.md §3).
     *
     * @param array<string, mixed> $response
     */
    private static function isRetryable(array $response): bool
    {
        return \in_array($response['code'] ?? null, ['unavailable', 'overloaded'], true);
    }

    /**
     * Returns the code and the message of a rejection.
     *
     * @param array<string, mixed> $response
     */
    private static function describe(array $response): string
    {
        $code = \is_string($response['code'] ?? null) ? $response['code'] : '?';
        $message = \is_string($response['message'] ?? null) ? substr($response['message'], 0, 300) : '';

        return "{$code}: {$message}";
    }
}
