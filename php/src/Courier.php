<?php

declare(strict_types=1);

namespace Chatws;

/**
 * Brings lines to the server within the request's budget: one connection, one retry or, of several addresses, each
 * once, then the spool.
 *
 * @internal
 */
final class Courier
{
    /** Before the retry: a server that closes may be about to be there again. */
    private const RETRY_PAUSE_MS = 20.0;
    /** From the spool with one call. */
    private const SPOOLED_LINES = 500;
    private const SPOOLED_BYTES = 512 * 1024;

    private readonly Addresses $addresses;
    private readonly Connection $connection;
    private readonly Budget $budget;
    private readonly ?Spool $spool;
    private float $pausedUntil = 0.0;
    private string $pausedFor = '';

    public function __construct(private readonly Config $config, private readonly Log $log)
    {
        $this->budget = new Budget($config->budgetMs, $config->perRequest);
        $this->spool = $config->spoolDir === null ? null : new Spool($config->spoolDir, $config->spoolMaxFiles);
        $this->addresses = new Addresses($config->address, $this->spool);
        $this->connection = new Connection($config, $this->addresses);
    }

    /**
     * Sends what waits in the spool, and these lines behind it.
     *
     * @param list<Line> $lines
     * @return array<int, array<string, mixed>> the answers by position, those that say no included; what has none has
     *     been logged, and spooled if it can be
     */
    public function send(array $lines): array
    {
        [$answers, $problem] = $this->deliver($lines);
        $left = [];
        foreach ($lines as $at => $line) {
            if (!isset($answers[$at]) || self::mayChange($answers[$at])) {
                $left[] = $line;
                $problem = isset($answers[$at]) ? self::words($answers[$at]) : $problem;
            } elseif (!$answers[$at]['ok']) {
                $this->log->warning("{$line->name} was refused: " . self::words($answers[$at]), ['id' => $line->id]);
            }
        }
        if ($left !== []) {
            $this->keep($left, $problem);
        }

        return $answers;
    }

    /** Sends what waits in the spool, for as long as that goes well. Returns how many still wait. */
    public function flush(): int
    {
        $before = \PHP_INT_MAX;
        while (($left = $this->spool?->count() ?? 0) > 0 && $left < $before) {
            $before = $left;
            [, $problem] = $this->deliver([]);
            if ($problem !== '') {
                $this->log->warning("the spool was not sent: {$problem}");
                break;
            }
        }

        return $this->spool?->count() ?? 0;
    }

    /** Another request begins: it has its own budget. */
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
     * @return array{array<int, array<string, mixed>>, string} the answers by position, and what went wrong
     */
    private function deliver(array $lines): array
    {
        if (Deadline::now() < $this->pausedUntil) {
            return [[], "not tried, after: {$this->pausedFor}"];
        }
        $deadline = $this->budget->begin();
        if ($deadline === null) {
            return [[], "this request has used up its {$this->config->budgetMs} ms"];
        }
        $taken = [];
        try {
            $taken = $this->spool?->take(self::SPOOLED_LINES, self::SPOOLED_BYTES, $this->log) ?? [];
            if ($taken === [] && $lines === []) {
                return [[], ''];
            }
            [$answers, $problem] = $this->attempt([...array_values($taken), ...$lines], $deadline);
            $position = 0;
            foreach ($taken as $name => $line) {
                $answer = $answers[$position++] ?? null;
                if ($answer !== null && $answer['ok']) {
                    $this->spool?->remove($name);
                } elseif ($answer !== null && !self::mayChange($answer)) {
                    $reason = self::words($answer);
                    $this->log->warning("{$line->name} from the spool was refused: {$reason}", ['id' => $line->id]);
                    $this->spool?->putAside($name);
                }
            }
            $own = [];
            foreach ($lines as $at => $line) {
                if (isset($answers[$position + $at])) {
                    $own[$at] = $answers[$position + $at];
                }
            }

            return [$own, $problem];
        } finally {
            $this->spool?->release();
            $this->budget->end();
        }
    }

    /**
     * @param list<Line> $lines
     * @return array{array<int, array<string, mixed>>, string}
     */
    private function attempt(array $lines, Deadline $deadline): array
    {
        $answers = [];
        $failure = null;
        $said = [];
        $several = $this->addresses->areSeveral();
        $tries = $several ? \count($this->addresses->all) : 2;
        for ($try = 0; $try < $tries; ++$try) {
            $open = self::open($lines, $answers);
            if ($open === []) {
                break;
            }
            if ($try > 0) {
                if ($deadline->left() <= 2 * self::RETRY_PAUSE_MS) {
                    break;
                }
                if (!$several) {
                    usleep((int) (self::RETRY_PAUSE_MS * 1000));
                }
            }
            // One that is silent must leave the others their share of the time.
            $patience = $several ? $deadline->left() / ($tries - $try) : \INF;
            [$found, $failure] = $this->connection->exchange(array_values($open), $deadline, $patience);
            foreach (array_keys($open) as $position => $at) {
                if (isset($found[$position])) {
                    $answers[$at] = $found[$position];
                }
            }
            if ($failure !== null) {
                $said[] = $failure->getMessage();
                if (!($several ? $failure->elsewhere : $failure->retry)) {
                    break;
                }
            }
            if ($failure === null && self::open($open, $answers) === []) {
                $this->connection->stay();
            } elseif ($several) {
                $this->connection->leave();
            }
        }
        if ($failure !== null && \count($answers) < \count($lines)) {
            $this->pausedUntil = Deadline::now() + $this->config->pauseMs;
            $this->pausedFor = $several ? implode('; ', $said) : $failure->getMessage();

            return [$answers, $this->pausedFor];
        }

        return [$answers, ''];
    }

    /**
     * The lines that have no answer that stays.
     *
     * @param array<int, Line> $lines
     * @param array<int, array<string, mixed>> $answers
     * @return array<int, Line>
     */
    private static function open(array $lines, array $answers): array
    {
        return array_filter(
            $lines,
            static fn (int $at): bool => !isset($answers[$at]) || self::mayChange($answers[$at]),
            \ARRAY_FILTER_USE_KEY,
        );
    }

    /** @param non-empty-list<Line> $lines that were not delivered */
    private function keep(array $lines, string $problem): void
    {
        $lasting = array_values(array_filter($lines, static fn (Line $line): bool => $line->lasting));
        $kept = $this->spool === null || $lasting === [] ? 0 : $this->spool->write($lasting);
        $what = \count($lines) === 1 ? $lines[0]->name : \count($lines) . ' lines';
        $fate = match (true) {
            $this->spool === null || $lasting === [] => '',
            $kept < \count($lasting) => '; ' . (\count($lasting) - $kept) . " not spooled: {$this->spool->problem}",
            $kept < \count($lines) => "; {$kept} spooled",
            default => '; spooled',
        };
        $context = ['ids' => array_map(static fn (Line $line): string => $line->id, \array_slice($lines, 0, 20))];
        $this->log->warning("{$what} not delivered: {$problem}{$fate}", $context);
    }

    /**
     * Whether it is a no that may become a yes.
     *
     * @param array<string, mixed> $answer
     */
    private static function mayChange(array $answer): bool
    {
        return \in_array($answer['code'] ?? null, ['unavailable', 'overloaded'], true);
    }

    /** @param array<string, mixed> $answer */
    private static function words(array $answer): string
    {
        $code = \is_string($answer['code'] ?? null) ? $answer['code'] : '?';
        $message = \is_string($answer['message'] ?? null) ? substr($answer['message'], 0, 300) : '';

        return "{$code}: {$message}";
    }
}
